"""Attention over the ragged slab: no repeated heads, no dense mask where lengths and ancestors say it all.

``choice`` finds the fastest backend that passes its self-check; ``hook`` is where ``transformers`` calls it;
``masked``, ``flash`` and ``split_kv`` are the backends, ``kernel`` is our own in Triton.
"""
