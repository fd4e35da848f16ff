"""What a network's file says of the datasets of a dataset file: sd-scripts' `ss_datasets`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_ext.dataset.buckets import bucket_limits, training_size
from lora_ext.dataset.folders import DatasetScan, Subset
from lora_ext.dataset.report import tag_frequency

_SWITCHES = ("color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens", "enable_wildcard")
_TEXTS = ("keep_tokens_separator", "secondary_separator", "caption_prefix", "caption_suffix")


def dataset_facts(scan: DatasetScan) -> list[dict[str, Any]]:
    """Sizes, buckets and subsets of each dataset of a scan."""
    numbers = sorted({subset.terms.dataset for subset in scan.subsets})
    return [_facts([each for each in scan.subsets if each.terms.dataset == number], scan) for number in numbers]


def _facts(subsets: Sequence[Subset], scan: DatasetScan) -> dict[str, Any]:
    sizing = subsets[0].sizing
    limits = bucket_limits(sizing) if sizing.enable_bucket else (None, None)
    own = [member for member in scan.members if member.subset.terms.dataset == subsets[0].terms.dataset]
    buckets: Counter[tuple[int, int]] = Counter()
    for member in own:
        if member.repeats:
            buckets[member.bucket.size] += member.repeats
    return {
        "is_dreambooth": not any(subset.metadata_file for subset in subsets),
        "batch_size_per_device": sizing.batch_size,
        "num_train_images": sum(each.repeats * len(each.images) for each in subsets if not each.is_reg),
        "num_reg_images": sum(each.repeats * len(each.images) for each in subsets if each.is_reg),
        "resolution": training_size(sizing),
        "enable_bucket": sizing.enable_bucket,
        "min_bucket_reso": limits[0],
        "max_bucket_reso": limits[1],
        "tag_frequency": tag_frequency(DatasetScan(list(subsets))),
        "bucket_info": {
            "buckets": {
                str(number): {"resolution": size, "count": buckets[size]} for number, size in enumerate(sorted(buckets))
            }
        },
        "subsets": [_subset_facts(subset) for subset in subsets],
    }


def _subset_facts(subset: Subset) -> dict[str, Any]:
    options = subset.options
    named = ("metadata_file", subset.metadata_file.name) if subset.metadata_file else ("is_reg", subset.is_reg)
    return {
        "image_dir": subset.folder.name,
        "img_count": len(subset.images),
        "num_repeats": subset.repeats,
        "class_tokens": subset.concept or None,
        named[0]: named[1],
        **{name: getattr(options, name) for name in _SWITCHES},
        **{name: getattr(options, name) or None for name in _TEXTS},
        "resize_interpolation": None if options.resize_interpolation == "auto" else options.resize_interpolation,
    }
