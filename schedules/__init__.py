"""Schedules: how each operator of a MobileNet-like network runs on each kind of hardware.

``spec``       what is computed (shapes, padding, activation), independent of any hardware
``plain``      the same computation as plain loops: the meaning of a spec, slow and obviously right
``base``       rules, their order, and the choice between a tuning record and the analytic knobs
``templates``  loop nests with knobs, shared by all CPUs
``x86``        the knobs for x86: analytic choice and search space per operator kind
``fallback``   for operators without a template: no function is left unscheduled
"""
