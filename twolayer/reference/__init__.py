"""The net written plainly: ``numpy`` is the ground truth, ``torch`` the fallback, ``tutorial`` a lesson in programs."""
