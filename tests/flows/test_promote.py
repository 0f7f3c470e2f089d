"""The flow hands its parameters to the training command; what that does is tested in `tests/training`."""

from pathlib import Path

import pytest

from flows.promote import promote
from tasks import registry

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]


def test_parameters_become_flags_that_the_command_knows(tmp_path: Path) -> None:
    with pytest.raises(registry.RegistryError) as caught:
        promote("nothing", accept=True, reevaluate=True, root=tmp_path)
    assert "`fovea promote nothing --accept --reevaluate` failed with status 1" in str(caught.value)
    assert "no model is registered for data set 'nothing'" in str(caught.value)
