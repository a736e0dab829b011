# The names of this package; each module is imported when one of its names is first used.
from .citeulike import CiteULike, find_citeulike, load_citeulike
from .dataset import Dataset
from .folder import load_dataset, save_dataset
from .growth import Growth, grow, read_new
from .ids import Ids, read_ids, write_ids
from .interactions import Interactions, Split, make_split
from .lists import CITEULIKE_T, FOURSQUARE, CiteULikeT, Foursquare, UserLists, load_lists
from .loading import SOURCES, fingerprint, is_path, load, read, register, with_name
from .logs import Reading, read_log, read_matrix, read_pairs, read_table
from .sampling import (
    ItemSample,
    among,
    distinct,
    has_many_scores,
    mixed_counts,
    mixed_items,
    nth_unseen,
    sample_items,
    seen_before,
    seen_mask,
    shuffle,
    some_seen,
    times_seen,
    unseen_items,
    was_seen,
)
from .source import Source
from .splitfiles import check_split_target, is_split_folder, read_split_folder, write_split
from .splits import SPLITS, hold_out, load_split, save_split, split_pairs
from .summary import Summary, summarise
from .synthetic import Synthetic, make_synthetic
from .tags import TAGGED, Tags, load_tags, read_tag_items

__all__ = [
    "CITEULIKE_T",
    "FOURSQUARE",
    "SOURCES",
    "SPLITS",
    "TAGGED",
    "CiteULike",
    "CiteULikeT",
    "Dataset",
    "Foursquare",
    "Growth",
    "Ids",
    "Interactions",
    "ItemSample",
    "Reading",
    "Source",
    "Split",
    "Summary",
    "Synthetic",
    "Tags",
    "UserLists",
    "among",
    "check_split_target",
    "distinct",
    "find_citeulike",
    "fingerprint",
    "grow",
    "has_many_scores",
    "hold_out",
    "is_path",
    "is_split_folder",
    "load",
    "load_citeulike",
    "load_dataset",
    "load_lists",
    "load_split",
    "load_tags",
    "make_split",
    "make_synthetic",
    "mixed_counts",
    "mixed_items",
    "nth_unseen",
    "read",
    "read_ids",
    "read_log",
    "read_matrix",
    "read_new",
    "read_pairs",
    "read_split_folder",
    "read_table",
    "read_tag_items",
    "register",
    "sample_items",
    "save_dataset",
    "save_split",
    "seen_before",
    "seen_mask",
    "shuffle",
    "some_seen",
    "split_pairs",
    "summarise",
    "times_seen",
    "unseen_items",
    "was_seen",
    "with_name",
    "write_ids",
    "write_split",
]
