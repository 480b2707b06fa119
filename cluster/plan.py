"""What fits where, before anything starts: ``python -m cluster.plan serve_config.yaml``.

Prints memory of weights and KV cache for each replica, which replicas fit on which GPU, what cannot
be placed and why, and the tokens a second that the memory bandwidth allows. Needs no GPU and loads
no weights: sizes are read from the headers of the models' files, here or on the hub.

Exit status: 0 if everything that must run fits, 1 if something does not, 2 for wrong arguments or a
wrong configuration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.planning.gpus import Node, find_gpu, parse_gpu_type, parse_nodes
from cluster.planning.needs import Parameters, needs_of, parse_parameters
from cluster.planning.packing import Packing, pack
from cluster.planning.ray_nodes import RayNode, running_nodes
from cluster.planning.report import plot, report
from serve_app.check import check
from serve_app.config.accelerators import GpuType
from serve_app.config.app_args import AppArgs

CONTEXT_TOKENS = 1024


def plan(args: Sequence[AppArgs], nodes: Sequence[Node], parameters: Parameters) -> Packing:
    """Place all deployments of all applications of a configuration on the nodes."""
    gpus = float(sum(node.num_gpus for node in nodes))
    needs = [need for each in args for need in needs_of(each, gpus, parameters)]
    return pack(nodes, needs)


def from_ray(nodes: Sequence[RayNode], own: tuple[GpuType, ...]) -> list[Node]:
    """The nodes of a running cluster.

    Raises:
        ValueError: one has GPUs of a type that is not known here.
    """
    return [
        Node(
            node.name,
            find_gpu(node.accelerator_type or "?", own) if node.num_gpus else None,
            int(node.num_gpus),
        )
        for node in nodes
    ]


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, nargs="?", default=Path("serve_config.yaml"))
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--nodes", metavar="NODES", help="such as 4xRTX5090,2*8xH100,cpu: 1 + 2 + 1 machines"
    )
    where.add_argument(
        "--address", metavar="ADDRESS", help="read them from a running Ray cluster; auto: this one"
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME=GIB:GB_S",
        help="a type that is not known here: its memory in GiB and bandwidth in GB/s",
    )
    parser.add_argument(
        "--params",
        action="append",
        default=[],
        metavar="ID=8B",
        help="parameters of a model whose size cannot be read",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=CONTEXT_TOKENS,
        metavar="TOKENS",
        help=f"context of each sequence, for tokens/s (default {CONTEXT_TOKENS})",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the memory of the GPUs")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.plan") -> int:
    """Print the plan for the file named on the command line; returns the exit status."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    if options.context < 1:
        parser.error(f"--context must be at least 1, got {options.context}")
    checked, faults = check(options.config)
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    try:
        own = tuple(parse_gpu_type(text) for text in options.gpu)
        parameters = parse_parameters(options.params)
        if options.nodes is not None:
            nodes = parse_nodes(options.nodes, own)
        else:
            nodes = from_ray(running_nodes(options.address), own)
    except (ValueError, ConnectionError) as error:
        parser.error(str(error))
    configured = {model.id for args in checked for model in args.models}
    if unknown := sorted(set(parameters) - configured):
        parser.error(f"--params names {unknown[0]!r}; configured are {', '.join(configured)}")
    packing = plan(checked, nodes, parameters)
    print(report(packing, options.context))
    if options.plot is not None:
        try:
            plot(packing, options.plot)
        except ModuleNotFoundError:
            print("--plot needs matplotlib: pip install 'gpt-task-serve[bench]'", file=sys.stderr)
            return 2
    return 1 if any(need.min_replicas for need, _ in packing.missing()) else 0


if __name__ == "__main__":
    sys.exit(main())
