"""The authors' checkpoints of CaBins: their tensor names and ours."""

OFFICIAL_NAMES = {
    "contexts": "contexts",
    "gamma": "gamma",
    "clip_model.visual.": "tower.",
    "clip_model.": "text_tower.transformer.",
    "computeAdaptiveBin.regressor.": "regressor.",
    "context_decoder.": "context_decoder.",
    "decoder.conv2.": "decoder.start.",
    **{f"decoder.up{level}._net.": f"decoder.up.{level - 1}.net." for level in (1, 2, 3)},
    "decoder.conv3.": "decoder.end.",
    "predict_D.conv_out.0.": "head.",
}
