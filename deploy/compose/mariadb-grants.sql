-- apply-mysql creates the schemas that the upstream has, and its own `sluice_meta`.
GRANT ALL ON *.* TO 'sluice'@'%';
