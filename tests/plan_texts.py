"""One plan as a file in both formats."""

YAML = r"""
base: symmetry            # a ready plan to start from
options: {momentum: 0.9}
roles:
  embedding: {rule: row_norm, lr_multiplier: 5, weight_decay: 0}
  router: {rule: adamw}
patterns:                 # tried in order before the roles
  - match: 'lm_head'
    rule: adamw
    lr: 1e-4
  - match: '\.0\.mlp\.'
    ns_steps: 8
"""
TOML = r"""
base = "symmetry"
options = {momentum = 0.9}

[roles]
embedding = {rule = "row_norm", lr_multiplier = 5, weight_decay = 0}
router = {rule = "adamw"}

[[patterns]]
match = 'lm_head'
rule = "adamw"
lr = 1e-4

[[patterns]]
match = '\.0\.mlp\.'
ns_steps = 8
"""
