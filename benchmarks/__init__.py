"""What the union costs: one question per file, each runnable alone as `python -m benchmarks.bench_NAME`.

Each prints one JSON line per case, with the machine, the kernel and the commit, so that lines can be kept and compared.
"""
