from tests.deploy.browser import browser as browser
from tests.deploy.browser import open_page as open_page
