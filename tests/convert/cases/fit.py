from transformer_zoo.models.backbones.fit import FIT, FITAR, FITDenoiser

SMALL = dict(layers="(1)2(2)1(1)", latents_per_group=2, width=8, num_heads=2, latent_width=12, latent_num_heads=3)
SMALL |= dict(mlp_ratio=1.5)
IMAGE = dict(image_size=(8, 8), group_size=(4, 4), patch_size=(2, 2), channels=1, num_classes=0)
CASES = {
    ("encoder", "extra"): FIT(**SMALL, **IMAGE, extra_width=4),
    ("encoder", "ends_with_latents"): FIT(**SMALL | IMAGE | dict(layers="(1)2", positions="sincos")),
    ("denoiser", "class"): FITDenoiser(**SMALL, groups=3, tokens=4, in_width=5, out_width=6, num_classes=7),
    ("denoiser", "plain"): FITDenoiser(
        **SMALL, read_mlp=True, read_norm=False, self_conditioning=False, latent_positions="sincos"
    ),
    ("decoder", "shared"): FITAR(**SMALL, groups=3, tokens=4, vocabulary=9),
    ("decoder", "apart"): FITAR(**SMALL, groups=3, tokens=4, vocabulary=9, shared_embedding=False, output_bias=False),
}
