"""The prompt sets, one YAML file each, read by ``clip_koa.prompts.read_prompts``."""
