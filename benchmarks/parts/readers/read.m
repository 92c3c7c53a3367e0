% Octave with its package netcdf: octave-cli read.m FILE NAMES OUT
pkg load netcdf
given = argv();
told = fopen(fullfile(given{3}, 'shown.tsv'), 'w');
names = textscan(fopen(given{2}), '%s %s', 'Delimiter', "\t");
for one = {'Conventions', 'title', 'history', 'model_id', 'schema_version'}
  try
    fprintf(told, "attribute\t/\t%s\t%s\n", one{1}, ncreadatt(given{1}, '/', one{1}));
  catch problem
    fprintf(told, "trouble\t%s\n", regexprep(problem.message, '\s+', ' '));
  end
end
for row = 1:numel(names{1})
  key = names{2}{row};
  try
    value = ncread(given{1}, ['/' key]);
    target = sprintf('%d.values', row);
    raw = fopen(fullfile(given{3}, target), 'w');
    if strcmp(names{1}{row}, 'texts')
      fprintf(raw, '%s', strjoin(cellstr(value(:)), char(30)));
    else
      fwrite(raw, double(value), 'double', 0, 'ieee-le');
    end
    fclose(raw);
    fprintf(told, "%s\t%s\t%s\n", names{1}{row}, key, target);
  catch problem
    fprintf(told, "trouble\t%s\n", regexprep(problem.message, '\s+', ' '));
  end
  for one = {'long_name', 'units', 'flag_meanings'}
    try
      fprintf(told, "attribute\t%s\t%s\t%s\n", key, one{1}, ncreadatt(given{1}, ['/' key], one{1}));
    catch
    end
  end
end
fclose(told);
