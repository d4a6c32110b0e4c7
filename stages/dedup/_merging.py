"""Kruskal's algorithm on numbered nodes: the edge that joins each node to a lower one."""

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.ops.compiled import compiled

# Shapes: V nodes, E edges.


def fall(
    a_E: NDArray[np.int64], b_E: NDArray[np.int64], height_E: NDArray[np.float32], nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(V,) the edge by which each node's group falls to a lower node, -1 for never; (V,) its root.

    Edges join groups from the least height up, and the lowest node of a group is its root. These
    edges are a minimum spanning forest; each belongs to exactly one node.
    """
    order_E = np.argsort(height_E, kind="stable")
    edge_V, root_V = _fall(a_E[order_E], b_E[order_E], nodes)
    return np.where(edge_V < 0, -1, order_E[edge_V]) if len(order_E) else edge_V, root_V


@compiled()
def _fall(a_E, b_E, nodes):
    edge_V = np.full(nodes, -1, np.int64)
    root_V = np.arange(nodes)
    for edge in range(len(a_E)):
        a, b = _root(root_V, a_E[edge]), _root(root_V, b_E[edge])
        if a != b:
            winner, loser = min(a, b), max(a, b)
            root_V[loser] = winner
            edge_V[loser] = edge
    for node in range(nodes):
        root_V[node] = _root(root_V, node)
    return edge_V, root_V


@compiled()
def _root(root_V, node):
    while root_V[node] != node:
        root_V[node] = root_V[root_V[node]]  # halves the path for whoever comes next
        node = root_V[node]
    return node
