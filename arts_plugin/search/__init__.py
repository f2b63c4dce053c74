"""Decoding strategies and the loop that runs them.

A strategy is asked for expansions and told their results (ask/tell). It does no I/O and never touches a model, so
it can be tested with a scripted proposer; the driver batches the strategies of many questions over one engine.
"""
