"""Tuning: measure schedules on a device, keep what is faster and right, never lose a measurement.

The way through is `tune.tune`: tasks of a network -> baselines -> search -> finalists inside the
network -> records that `build` applies.

``session``    one network being searched: proposes, measures, stores, and writes the records
``task``       the operators of a network, and their candidates: (rule, knobs)
``search``     what to measure next for one operator; ``ranking`` its learned order
``schedule``   which operator gets the next trials
``transfer``   what earlier runs know
``measure``    candidates -> seconds, cold, through MetaSchedule's Builder and Runner
``finalists``  the last choice: numbers (``check``), then whole networks (``network``, ``turns``),
               here or on another ``device``
``store``      measurements, one JSON line each, that survive kill -9
``records``    the winners, and which of them apply to a build; ``maintain`` looks after them
``report``     what a run found
``gpu``        the same session on a GPU: ``gpu_measure`` (kernels in CUDA graphs, beside the
               analytic choice) and ``gpu_finalists`` (the network as a whole decides)
``sketch``     MetaSchedule's generated search space, for what has no template; ``replay`` is how an
               interrupted one goes on
``static``     candidates predicted instead of measured

What is TVM's and what is ours
------------------------------
TVM's: MetaSchedule's interfaces of Builder and Runner (so that its LocalRunner, its RPCRunner and
any other measure for us), its LocalRunner itself, its evaluator, and for ``--space sketch`` the
whole of it: space generation, evolutionary search, cost model, database.

Ours, because MetaSchedule has nothing for it:

* candidates. MetaSchedule searches over *traces* of schedule primitives; our kernels are written
  with the IR builder and have none. A candidate is (operator, rule, knobs), the spaces are small
  enough to be ranked as a whole, and evolution over traces has nothing to work on.
* the builder. MetaSchedule's LocalBuilder starts its processes anew for every batch and imports
  tensor intrinsics in each; ours keeps them.
* the ranking. Of the learned part xgboost is the same; the features are the knobs and the
  operator's proportions instead of MetaSchedule's per-store features, which need every candidate's
  kernel to be built before it can be ranked.
* cold measurements, the choice inside the network, the store and the records: see the modules.
"""

from __future__ import annotations
