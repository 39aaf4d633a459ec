"""The YAML configs that ship with the recipes; `orthoopt pretrain NAME` reads NAME.yaml from here."""
