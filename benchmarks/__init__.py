"""Measure what the union costs beside its peers: one question a file, run together by `python -m benchmarks.suite`.

Each `bench_NAME.py` defines its workloads and can be run alone as `python -m benchmarks.bench_NAME`, with the options
of the suite. The engine is unionfs.bench; README.md says what is measured and how.
"""
