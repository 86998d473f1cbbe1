"""The benchmark behind ``twolayer bench``: every implementation is verified, then timed in turns with the others.

``cases`` is the table of what is measured, ``implementations`` that of who takes part, ``targets`` that of what is
asked for. ``contest`` verifies and times, in worker processes of their own (``worker``, ``workers``); ``limits``
measures the machine; ``document`` is what a run leaves, and ``report`` and ``plots`` show it.
"""
