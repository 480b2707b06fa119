"""A facade for this engine, with which scripts written for gpt-task run unchanged.

gpt-task is the library at https://github.com/crynux-network/gpt-task; this follows its version 3.2.
"""
