"""Proof that a layout trains the same model: a reference that shares no code with the system, what ranks record, the verdict.

`reference*.py` are the plain loop, in float64; `recording.py` runs in ranks; `verdict.py` holds one against the other;
`ranks.py` keeps ranks up from layout to layout; `layouts.py`, `check.py` and `fuzz.py` are what `pretrain parity` does.
"""
