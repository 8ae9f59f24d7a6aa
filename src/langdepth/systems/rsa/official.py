"""The authors' checkpoints of RSA: their tensor names and ours."""

OFFICIAL_NAMES = {"scene_feat_net.": "scene.", "scale_net.": "scale.", "shift_net.": "shift."}
