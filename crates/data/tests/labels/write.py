"""Label files as other programs write them: six images, 16 x 8 cells, 55 logits.

python write.py   (pandas 2, pyarrow, polars 1, duckdb 1; the versions used are in the files)
"""
import duckdb
import pandas
import polars

CELLS, LOGITS = 16 * 8, 55


def row(i):
    parts = [255 if (i + j) % 11 == 0 else (i + j) % 8 for j in range(CELLS)]
    return {
        "key": f"a/{i:05}",
        "width": 10 + i,
        "height": 20 + i,
        "parts": bytes(parts),
        "part_confidence": bytes(i * j % 256 for j in range(CELLS)),
        "attributes": [i - k / 4 for k in range(LOGITS)],
        "image_sha256": f"{i:016x}",
    }


frame = pandas.DataFrame([row(i) for i in range(6)])
frame["note"] = ["checked", None, None, "ears", None, None]
# Snappy, dictionaries, 64-bit numbers, lists of doubles, an index column, another order.
frame[list(reversed(frame.columns))].set_index("note", append=True).to_parquet("pandas.parquet")
# Zstandard, maps as lists of small numbers, two row groups, version 2 pages.
table = polars.from_pandas(frame).with_columns(
    polars.col("width", "height").cast(polars.UInt16),
    polars.col("attributes").cast(polars.List(polars.Float32)),
    parts=polars.Series([list(one) for one in frame["parts"]], dtype=polars.List(polars.UInt8)),
)
table.write_parquet("polars.parquet", row_group_size=4)
table.write_parquet(
    "version2.parquet", use_pyarrow=True, pyarrow_options={"data_page_version": "2.0", "version": "2.6"}
)
duckdb.sql("copy (select * from frame where width < 16 order by key) to 'duckdb.parquet' (compression gzip)")
