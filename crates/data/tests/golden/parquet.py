"""Parquet files with images, as other programs write them: pyarrow, pandas, and in the form of
Hugging Face's datasets (a structure of bytes and path, with the features in the metadata).

Images are PNGs of 2 x 2 pixels of one color: image i has the color (i, i, i), so that a test knows
which one it got.
"""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

out = Path("parquet")
out.mkdir(exist_ok=True)


def png(i):
    data = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(data, "png")
    return data.getvalue()


image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}}}


def table(rows, kind=image, **others):
    columns = {"image": pa.array(rows, kind), "label": pa.array(range(len(rows)), pa.int64())}
    columns |= others
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})


rows = [{"bytes": png(i), "path": f"{i:02}.png"} for i in range(12)]
bare = [png(i) for i in range(12)]

# As `datasets` writes: groups of a few rows, Snappy, with dictionaries and statistics.
pq.write_table(table(rows), out / "datasets.parquet", row_group_size=5)
# The same without compression: places in the file, after the page of a dictionary.
pq.write_table(table(rows), out / "stored.parquet", row_group_size=5, compression="none")
for version in ["1.0", "2.0"]:
    pq.write_table(
        table(rows), out / f"plain{version[0]}.parquet", row_group_size=7, compression="none",
        use_dictionary=False, data_page_version=version, data_page_size=300, write_batch_size=2,
    )
for codec in ["zstd", "gzip", "brotli", "lz4"]:
    pq.write_table(table(rows), out / f"{codec}.parquet", compression=codec, data_page_version="2.0")
# Pages of two rows.
pq.write_table(
    table(rows), out / "pages.parquet", compression="zstd", use_dictionary=False,
    data_page_size=100, write_batch_size=2,
)
# Rows without image, without bytes, without path; no statistics that would count them.
missing = list(rows)
missing[1] = None
missing[4] = {"bytes": None, "path": "04.png"}
pq.write_table(table(missing), out / "missing.parquet", row_group_size=5)
pq.write_table(table(missing), out / "uncounted.parquet", compression="none", write_statistics=False)
pathless = [dict(row) for row in rows[:3]] + [{"bytes": png(3), "path": None}]
pq.write_table(table(pathless), out / "pathless.parquet")
repeated = [{"bytes": png(i), "path": f"{i % 3}.png"} for i in range(4)]
pq.write_table(table(repeated), out / "repeated.parquet")
# Plain binary, by pandas; required, and large binary, by pyarrow.
pd.DataFrame({"image": bare, "path": [f"a/{i}.png" for i in range(12)]}).to_parquet(out / "pandas.parquet")
required = pa.schema([pa.field("photo", pa.large_binary(), nullable=False)])
pq.write_table(pa.table({"photo": bare}, schema=required), out / "required.parquet", compression="none")
# A second column of images; two without the name `image`; none; none with bytes.
pq.write_table(table(rows[:2], mask=pa.array(rows[2:4], image)), out / "two.parquet")
pq.write_table(pa.table({"a": bare[:2], "b": bare[:2]}), out / "unclear.parquet")
pq.write_table(pa.table({"text": ["a"], "list": [[b"x"]]}), out / "none.parquet")
pq.write_table(table([{"bytes": None, "path": "x.png"}]), out / "links.parquet")
# The same image over and over: one value of a dictionary.
pq.write_table(table([rows[3]] * 3 + [rows[5]], label=pa.array(range(4))), out / "same.parquet")
