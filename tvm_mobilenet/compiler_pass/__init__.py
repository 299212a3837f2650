"""From an imported Relax module to an executable: one pass a file, composed in `pipeline`.

``activations``         recognises activation functions in their imported forms
``lower_operators``     operator chains -> calls of own functions on blocked activations
``schedule_operators``  own functions -> scheduled functions with packed weights
``schedule_rest``       whatever TVM's own lowering made -> the fallback schedule
``pipeline``            the phases in order, the dump of the IR between them, the build
"""
