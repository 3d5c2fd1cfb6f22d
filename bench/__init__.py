"""Benchmarks: one script a question, one result schema; results/ holds measured files.

python3 -m bench.gpu --budget 8m     how fast, on the GPU in this machine
python3 -m bench.metered             how many launches and bytes, on any machine
"""
