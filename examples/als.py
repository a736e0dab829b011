"""Trains a teacher outside htd_jax, on the training part alone: `python examples/als.py parts` after
`htd-jax split --dataset FILE --to parts`. Needs `pip install implicit`.

Writes `users.npy` and `items.npy`, whose rows are in the order of `parts/users.parquet` and `parts/items.parquet`.
"""

import sys
from pathlib import Path

import implicit
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse

parts = Path(sys.argv[1])
train = pq.read_table(parts / "train.parquet")
ids = {side: pq.read_table(parts / f"{side}s.parquet")["id"] for side in ("user", "item")}
rows = [pc.index_in(train[side], value_set=ids[side].combine_chunks()).to_numpy() for side in ids]
matrix = scipy.sparse.csr_matrix((np.ones(len(train), np.float32), rows), [len(column) for column in ids.values()])
als = implicit.als.AlternatingLeastSquares(200, alpha=80, regularization=100, random_state=0)
als.fit(matrix)
np.save("users.npy", als.user_factors)
np.save("items.npy", als.item_factors)
