"""NIR, the Neuromorphic Intermediate Representation, both ways: graphs to networks as data, and back.

    found = import_graph("model.nir", dt=1e-4, discretisation="euler", reset="zero")
    network = exodus_core.network.build(found.description)
    network.load_state_dict(found.weights)

    nir.write("trained.nir", export_graph(network.description, network.state_dict(), dt=1e-4))

Needs the extra `nir` of exodus-core. docs/nir.md has what each node becomes, and what a NIR file leaves open.
"""

from exodus_core.nir.conventions import LIBRARIES, Conventions
from exodus_core.nir.reading import Imported, import_graph
from exodus_core.nir.refusals import GraphError
from exodus_core.nir.writing import export_graph
from exodus_core.refusals import Refusal

__all__ = ["LIBRARIES", "Conventions", "GraphError", "Imported", "Refusal", "export_graph", "import_graph"]
