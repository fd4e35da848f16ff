"""Where the pictures are, and how they are brought to size."""

from __future__ import annotations

from dataclasses import dataclass

from lora_ext.config.fields import setting

RESIZE_INTERPOLATIONS = ("auto", "area", "lanczos", "bicubic", "bilinear", "nearest", "box")


@dataclass(frozen=True)
class DatasetSettings:
    """Where the pictures are, and in which sizes they are trained."""

    train_data_dir: str = setting(
        "", "Pictures", "Folder of pictures, or of N_name folders: N repeats, name for pictures without a caption."
    )
    dataset_config: str = setting(
        "", "Dataset file",
        "A dataset TOML of sd-scripts (or its text): folders with options of their own, in place of the folder above. "
        "A metadata .json or .jsonl and a concept list .json of sd_dreambooth are read as well.", lines=2,
    )  # fmt: skip
    num_repeats: int = setting(
        1, "Repeats", "How often each picture of a flat folder comes up in an epoch.", minimum=1, maximum=10000,
        sd_scripts="dataset_repeats",
    )  # fmt: skip
    class_tokens: str = setting(
        "", "Trigger word", "Caption of pictures that have none, where the folder's name gives none.", sd_scripts=""
    )
    caption_extension: str = setting(
        "auto", "Caption files", "Extension of the caption files; auto reads .txt and .caption.",
        choices=("auto", ".txt", ".caption"),
    )  # fmt: skip
    reg_data_dir: str = setting(
        "", "Regularisation pictures",
        "Folder of pictures of the class without the subject (any woman); they double the time, rarely needed.",
    )  # fmt: skip
    prior_loss_weight: float = setting(
        1.0, "Prior loss weight", "Weight of the regularisation pictures' loss.", minimum=0, maximum=100
    )
    class_prompt: str = setting(
        "", "Class prompt",
        "Missing regularisation pictures are drawn by the loaded checkpoint from this prompt before the first step.",
        sd_scripts="",
    )  # fmt: skip
    num_class_images: int = setting(
        0, "Class pictures", "So many regularisation pictures are to be there; missing ones are drawn.", minimum=0,
        maximum=100000, sd_scripts="",
    )  # fmt: skip
    resolution: str = setting(
        "512", "Resolution", "Training size: one number for a square, or width,height.", unit="px"
    )
    enable_bucket: bool = setting(
        True, "Buckets", "Keep the pictures' shapes: sort them into sizes of about the same area."
    )
    min_bucket_reso: int = setting(
        256, "Smallest side", "No bucket has a side shorter than this.", minimum=8, maximum=8192, multiple_of=8,
        unit="px",
    )  # fmt: skip
    max_bucket_reso: int = setting(
        1024, "Longest side", "No bucket has a side longer than this.", minimum=8, maximum=8192, multiple_of=8,
        unit="px",
    )  # fmt: skip
    bucket_reso_steps: int = setting(
        64, "Bucket step", "Sides of buckets are multiples of this.", minimum=8, maximum=512, multiple_of=8, unit="px"
    )
    bucket_no_upscale: bool = setting(
        False, "Never enlarge", "Pictures smaller than the resolution keep their size instead of being enlarged."
    )
    resize_interpolation: str = setting(
        "auto", "Scaling", "How pictures are scaled; auto averages areas when shrinking and takes Lanczos otherwise.",
        choices=RESIZE_INTERPOLATIONS,
    )  # fmt: skip
    flip_aug: bool = setting(
        False, "Flip", "Show each picture mirrored half of the time; not for subjects whose sides differ."
    )
    color_aug: bool = setting(
        False, "Vary colours", "Change hue and brightness a little each time; latents cannot be cached then."
    )
    random_crop: bool = setting(
        False, "Random crop", "Cut out another part each time instead of the centre; latents cannot be cached then."
    )
    face_crop_aug_range: str = setting(
        "", "Face crop",
        "How many faces fit across what is cut out, at least and at most, such as 2.0,4.0, for file names that end in "
        "_centre-x_centre-y_width_height of a face; latents cannot be cached then.",
    )  # fmt: skip
    alpha_mask: bool = setting(
        False, "Mask from transparency", "Only what is opaque in a picture is learned; switches masked loss on."
    )
    conditioning_data_dir: str = setting(
        "", "Mask folder", "Folder of masks named like the pictures and of their size: white is learned, black is not."
    )
