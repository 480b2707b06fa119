"""A facade, so that scripts written for gpt-task run unchanged; behind it is this engine.

gpt-task is the library at https://github.com/crynux-network/gpt-task; its version 3.2 is followed.
"""
