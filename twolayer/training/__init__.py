"""The parts of native training, behind :mod:`twolayer.trainer`: options, data, parameters, schedules, stopping."""
