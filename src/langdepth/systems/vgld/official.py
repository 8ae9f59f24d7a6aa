"""The authors' checkpoints of VGLD: their tensor names and ours."""

OFFICIAL_NAMES = {
    "mlp_classifier.": "classifier.",
    "cal_global.": "scene.",
    "cal_scales_dict.": "scales.",
    "cal_shifts_dict.": "shifts.",
}
