"""datatrove: ParquetReader -> DocumentTokenizer on its local executor, unshuffled, without the merging step that may follow."""

import argparse
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from loguru import logger
from tree_clock import tell, timed


def main() -> None:
    """Tokenizes a folder of parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    files = sorted(arguments.corpus.glob("*.parquet"))
    report: dict[str, object] = {}
    with timed(report):
        executor = LocalPipelineExecutor(
            pipeline=[
                ParquetReader(str(arguments.corpus), glob_pattern="*.parquet", read_metadata=False),
                DocumentTokenizer(
                    str(arguments.out / "tokens"),
                    tokenizer_name_or_path=str(arguments.tokenizer),
                    eos_token="<|endoftext|>",
                    shuffle_documents=False,
                ),
            ],
            tasks=len(files),
            workers=arguments.workers,
            start_method="fork",
            logging_dir=str(arguments.out / "logs"),
        )
        executor.run()
    written = list((arguments.out / "tokens").glob("*.ds"))
    report["tokens"] = sum(file.stat().st_size for file in written) // 2
    report["documents"] = sum(file.with_suffix(".ds.index").stat().st_size for file in written) // 8
    tell(report)


if __name__ == "__main__":
    main()
