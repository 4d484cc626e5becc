"""How good tracks are: benchmarks, published protocols, result files and their summary."""
