"""The benchmark on a GPU: ``python -m twolayer.bench.gpu``, a part of ``benchmarks/gpu_check.sh``.

``programs`` are who takes part, each verified in float64 before it is timed; ``clock`` times them in turns with CUDA
events; ``cases`` and ``training`` are what is measured, as much as ``plan`` says; ``report`` writes JSON and Markdown.
"""
