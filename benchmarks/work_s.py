"""Fixed work S: every method of ours and the peer that has it, on SmolLM2-135M-Instruct, in one table.

    python benchmarks/work_s.py --calibration wt2_valid.txt --evaluation wiki.test.raw \
        --peer llmcompressor=.venv-llmc/bin/python --peer bitsandbytes=.venv-bnb/bin/python

Who runs is listed in contestants.py; libraries of peers are llmcompressor, bitsandbytes, gptqmodel, hqq and autoround.
Rows, scores and options are those of fixed_work.py; results are kept in work_s.json. The table (on standard output,
and in RESULTS.md) is made of all of them. Bits and bytes are those of everything stored under the quantized linears,
scales and tables included.
"""

from __future__ import annotations

from contestants import CONTESTANTS
from fixed_work import FixedWork
from table import table

if __name__ == "__main__":
    print(table(FixedWork(CONTESTANTS, "work_s.json", str(__doc__)).run()))
