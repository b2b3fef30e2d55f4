"""Measure the costs of the union beside those of its peers: one question in each file; `python -m benchmarks.suite`
runs all.

Each `bench_NAME.py` defines its workloads and can be run alone as `python -m benchmarks.bench_NAME`, with the options
of the suite. The engine is unionfs.bench; README.md describes the measurements.
"""
