"""Measuring a policy: rollouts, summaries, comparisons, benchmarks, tests of exactness, reports."""
