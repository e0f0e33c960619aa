"""Exact sampling of any-order autoregressive models in fewer rounds than tokens (arXiv 2408.09442, 2511.07869).

The chain is `chain.tokens.TokenChain`. Everything here is on NumPy's arrays; the network is whatever `Marginals` calls.
"""
