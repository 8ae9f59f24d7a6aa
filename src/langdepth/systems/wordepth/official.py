"""The authors' checkpoints of WorDepth: their tensor names and ours."""

# Prefixes of the authors' tensors -> ours; the last refinement's feature, which nothing uses, is left out.
OFFICIAL_NAMES = {
    "backbone.": "encoder.",
    "mlayer.1.ln.": "metric.",
    "text_encoder.mean.": "text_vae.mean.",
    "text_encoder.deviation.": "text_vae.logvar.",
    "eps_layer.eps_net.": "sampler.mix.",
    "eps_layer.post.": "sampler.noise.",
    "outc.conv.": "head.",
    **{
        f"up_{level}.conv.{theirs}.": f"up_{level}.conv.{ours}."
        for level in (4, 3, 2)
        for theirs, ours in (("conv1.0", "grouped"), ("conv2.0", "conv"), ("bt", "shortcut"))
    },
    **{
        f"ref_{level}.{theirs}.": f"refine_{level}.{ours}."
        for level in (4, 3, 2)
        for theirs, ours in (("fw", "feature"), ("dw", "depth"))
    },
}
