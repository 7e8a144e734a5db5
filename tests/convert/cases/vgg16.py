from transformer_zoo.models.features.vgg16 import VGG16

CASES = {("torchvision", ""): VGG16((2, 3, 4, 5, 6))}
