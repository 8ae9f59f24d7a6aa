"""What each switch of a protocol does, in words: for the options of `evaluate`, reports and docs/protocols.md."""

from __future__ import annotations

from typing import Any, NamedTuple


class Switch(NamedTuple):
    """What a switch of ``Protocol`` does, and what its values mean ("set": those that are not named)."""

    help: str
    means: dict[Any, str]


SWITCHES = {
    "frame": Switch(
        "The part of image and ground truth that takes part.",
        {
            "stored": "the whole stored image takes part",
            "kb": "image and ground truth are cut to KITTI's bottom 352 rows and centred 1216 columns",
            "kb-pasted": "all takes part; the network gets KITTI's 352x1216, its depth is pasted into zeros",
            "nyu-inner": "image and ground truth are cut to the middle 416x544 of a 480x640 NYU image",
        },
    ),
    "frame_size": Switch(
        "Resize image and ground truth of the frame to HEIGHTxWIDTH first, for example 352x704.",
        {
            None: "the frame keeps its size",
            "set": "image (bicubic) and ground truth (nearest) of the frame are resized to {frame_size} pixels first",
        },
    ),
    "flip": Switch(
        "Average the depth with that of the mirrored image (true or false).",
        {True: "averaged with the depth of the mirrored image", False: "each image is predicted once"},
    ),
    "resize": Switch(
        "How depth is resized from network size to image size.",
        {
            "system": "depth is resized bilinearly to image size as the system states it: corners or centres aligned",
            "bilinear": "depth is resized bilinearly to image size, pixel centres on pixel centres",
            "bilinear-aligned": "depth is resized bilinearly to image size, corners on corners",
            "bilinear-twice": "depth is interpolated twice: to the stored image's size, then to the frame's",
        },
    ),
    "alignment": Switch(
        "Fit each depth map to its ground truth before it is evaluated.",
        {
            "none": "depth is evaluated as it is, in metres",
            "median": "depth is multiplied, image by image, so that its median is that of the ground truth",
            "least_squares": "depth is fitted to the ground truth, image by image, by a factor and a shift",
            "disparity": "1 / depth is fitted to 1 / ground truth, per image by factor and shift, then inverted",
        },
    ),
    "clamp_prediction": Switch(
        "Limit the depth to the range of the protocol (true or false).",
        {True: "depth is limited to {min_depth} to {max_depth} m", False: "depth is not limited"},
    ),
    "crop": Switch(
        "The window of the frame that is evaluated.",
        {
            "none": "the whole frame is evaluated",
            "eigen-nyu": "evaluates rows 45:471, columns 41:601 of 480x640, the same share of other sizes",
            "eigen-nyu-46": "evaluates rows 45:471, columns 46:601 of 480x640, the same share of other sizes",
            "eigen-nyu-inner": "evaluates the Eigen window inside the frame, rows 0:415 and columns 0:541",
            "eigen-nyu-pixels": "evaluates rows 45:471 and columns 41:601 of an image of any size",
            "eigen-kitti": "evaluates Eigen's window, 33 to 91 % of the height and 4 to 96 % of the width",
            "garg": "evaluates Garg's window, 41 to 99 % of the height and 4 to 96 % of the width",
        },
    ),
    "min_depth": Switch(
        "Evaluate where the ground truth is above this, in metres.",
        {"set": "evaluates ground truth above {min_depth} m"},
    ),
    "max_depth": Switch(
        "Evaluate where the ground truth is below this, in metres.",
        {"set": "evaluates ground truth below {max_depth} m"},
    ),
    "clamp_views": Switch(
        "Limit the depth of image and mirrored image to the range before they are averaged (true or false).",
        {
            True: "both views are limited to 0 to {max_depth} m before they are averaged",
            False: "the views are averaged as they are",
        },
    ),
    "mask_prediction": Switch(
        "Evaluate only where the prediction, too, is above min_depth (true or false).",
        {
            True: "pixels whose prediction is not above {min_depth} m are not evaluated",
            False: "which pixels are evaluated does not depend on the prediction",
        },
    ),
    "window": Switch(
        "Predict in windows of HEIGHTxWIDTH pixels and average, for example 352x512.",
        {None: "the network gets the frame whole", "set": "the network gets windows of {window} pixels"},
    ),
    "stride": Switch(
        "Distance of the windows, HEIGHTxWIDTH; without it they lie side by side.",
        {None: "windows, where there are any, lie side by side", "set": "a window every {stride} pixels"},
    ),
    "training_focal": Switch(
        "Multiply the depth by each camera's focal length over this one, in pixels.",
        {
            None: "depth is not corrected for the camera's focal length",
            "set": "depth is multiplied by the camera's focal length over {training_focal} pixels",
        },
    ),
    "min_pixels": Switch(
        "Skip images with fewer pixels to evaluate than this; without it 10 where there is an alignment, else 1.",
        {
            None: "images without any of these pixels are skipped; with an alignment, those with fewer than 10",
            "set": "images with fewer than {min_pixels} of these pixels are skipped",
        },
    ),
}
"""The switches of ``Protocol``, for command line and documentation. Meanings may name other switches in braces."""
