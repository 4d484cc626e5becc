"""Starts AWS nodes for Ray's autoscaler: spot nodes if AWS has spot capacity, else on-demand nodes.

Ray 2.60 keeps asking for a node type that AWS has just refused, even if there are other types: autoscaler v2 lowers the
rank of a type only when an instance that AWS did start never joins. So one node type for spot and another one for
on-demand nodes do not work as a fallback. This provider asks AWS a second time instead, before Ray sees a failure.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

NO_SPOT = ("InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow")
"""Errors of AWS when it has no spot capacity in any of the subnets, or when the account may have no more of it."""


class SpotFirst(AWSNodeProvider):
    """`provider: {type: external, module: spot_first.SpotFirst}`, with all other settings of `type: aws`."""

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        try:
            return super()._create_node(node_config, dict(tags), count)
        except NodeLaunchException as error:
            if error.category not in NO_SPOT or "InstanceMarketOptions" not in node_config:
                raise
            logger.warning("No spot capacity for %s (%s): on demand", node_config["InstanceType"], error.category)
        on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
        return super()._create_node(on_demand, dict(tags), count)
