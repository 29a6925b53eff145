"""Benchmarks, run by hand: ``python -m stress.bench`` (see ``stress/README.md``). Never tests."""
