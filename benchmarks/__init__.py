"""What the union costs beside its peers: one question a file, run together by `python -m benchmarks.suite`.

Each `bench_NAME.py` says what it asks (workload) and can be run alone as `python -m benchmarks.bench_NAME`, with the
options of the suite. README.md says what is measured and how.
"""
