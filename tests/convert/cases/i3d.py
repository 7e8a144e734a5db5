from transformer_zoo.models.features.i3d import I3D

CASES = {(name, ""): I3D(num_classes=5) for name in ("pytorch_i3d", "kinetics_i3d_pytorch")}
