from transformer_zoo.models.features.vgg16 import LPIPS

CASES = {(name, ""): LPIPS((2, 3, 4, 5, 6)) for name in ("package", "torchvision")}
