"""Ready pretraining runs on Hugging Face Trainer; `orthoopt pretrain` is `orthoopt.recipes.pretrain.main`."""
