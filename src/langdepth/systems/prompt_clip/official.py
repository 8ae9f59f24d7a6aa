"""The authors' checkpoints of learned prompts: their tensor names and ours, beside CLIP's image tower."""

from __future__ import annotations

import torch
from torch import Tensor

from langdepth.text.learned_prompts import GROUPS

TOKENS = "extra_tkns_learnables_"
OFFICIAL_NAMES = {
    "clip.": "text_tower.transformer.",
    "img_f_2_txt_tkns.img_f_agg2tkndim.model.": "conditioner.",
    "post_img_feat_stage.decoder_block_list.": "feature_stage.decoder.convs.",
    "post_lang_corr_stage.decoder_block_list.": "logit_stage.decoder.convs.",
}


def model_tensors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a Lightning checkpoint only what is under ``model.``; without the suffix of single embeddings."""
    if any(key.startswith("model.") for key in state_dict):
        state_dict = {key.removeprefix("model."): v for key, v in state_dict.items() if key.startswith("model.")}
    return {key.removesuffix(".embeddings.weight"): value for key, value in state_dict.items()}


def split_tokens(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors without the learned tokens, and these: group of GROUPS -> (count, width)."""
    plain = {key: value for key, value in state_dict.items() if not key.startswith(TOKENS)}
    stacked = {}
    for group in GROUPS:
        rows = {
            int(key.rpartition(".")[2]): value
            for key, value in state_dict.items()
            if key.startswith(f"{TOKENS}{group}.") and key.rpartition(".")[2].isdecimal()
        }
        if rows:
            stacked[group] = torch.cat([rows[i] for i in sorted(rows)])
    return plain, stacked
