from transformer_zoo.models.masked_generation.enat import ENAT

CASES = {
    ("reference", ""): ENAT(
        grid=(2, 2), num_codes=5, num_classes=3, encoder_depth=3, decoder_depth=2, width=12, num_heads=3, mlp_ratio=2.0
    )
}
