"""Which YAML options do passes share?"""
