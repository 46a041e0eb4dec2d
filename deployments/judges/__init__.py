"""Models that say how good a painted picture is; each opens its own libraries."""
